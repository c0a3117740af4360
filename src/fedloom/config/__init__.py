"""The configuration: one schema, read from YAML with overrides, all errors at once."""

from fedloom.config.dump import dump
from fedloom.config.load import load, parse
from fedloom.config.schema import Config

__all__ = ["Config", "dump", "load", "parse"]
