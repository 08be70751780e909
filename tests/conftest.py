import torch

# The models here are tiny: more threads only wait for each other, most of all
# where another process keeps the cores busy.
torch.set_num_threads(1)
