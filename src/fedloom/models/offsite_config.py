"""Tuning a model whose owner keeps it: which blocks go to the clients, and what stands in for the others."""

from typing import Literal

from pydantic import Field

from fedloom.settings import Strict


class AlignConfig(Strict):
    """How a distilled emulator learns to be like the blocks it stands for, on the owner's own or public rows.

    Clients' rows are never used. The clients' blocks, the embeddings and the head do not move.
    """

    source: str | None = Field(
        None,
        description="The owner's or public rows, as in `data.source`, read with `data.columns`; null: the rows that "
        "`data.public` or `data.public_source` set aside.",
    )
    steps: int = Field(200, ge=1, description="Optimiser steps.")
    batch_size: int = Field(16, ge=1, description="Texts per step.")
    lr: float = Field(1e-3, gt=0, description="Learning rate, falling to 0 along a cosine.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Of the alignment alone.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Longer gradients are shortened to this; null: never.")
    kd_weight: float = Field(
        0.9, ge=0, description="Weight of the distance between what the emulator's blocks and the owner's put out."
    )
    lm_weight: float = Field(0.1, ge=0, description="Weight of the emulator's own language modelling loss.")


class OffsiteConfig(Strict):
    """Offsite-tuning (Xiao et al. 2023, https://arxiv.org/abs/2302.04870).

    The first and last blocks of the owner's model (`model`) are the adapter, which clients train. Those between stay
    with the owner; clients get an emulator in their place.
    """

    head_layers: int = Field(1, ge=0, description="Blocks from the first on that clients train.")
    tail_layers: int = Field(1, ge=0, description="Blocks up to the last that clients train.")
    method: Literal["drop", "distill"] = Field(
        "drop",
        description="The emulator: some of the middle blocks as they are, or these, aligned to all of them.",
    )
    drop_ratio: float = Field(0.5, description="Share of the middle blocks that the emulator leaves out.")
    rule: Literal["official", "fs_llm"] = Field(
        "official",
        description="Which middle blocks stay, evenly spaced: places rounded, as in the paper's code, or cut down to "
        "whole numbers, as in FederatedScope-LLM.",
    )
    embeddings: bool = Field(False, description="Clients train the embeddings, the last norm and the head as well.")
    emulator: str | None = Field(
        None,
        description="Folder that `fedloom emulator build` wrote; null: a simulation drops blocks itself (method drop).",
    )
    evaluate: Literal["full", "emulator", "both"] = Field(
        "both",
        description="What is scored: the owner's model with the clients' blocks put back, the emulator with them, or "
        "both.",
    )
    align: AlignConfig = AlignConfig()
