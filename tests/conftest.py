"""One intra-op thread in every test: sums in one order, the same bits every time."""

import torch

torch.set_num_threads(1)
