"""Candidate operations of published search spaces, by the names of `nn.operations`."""

# arXiv:1806.09055, section 3.1.
DARTS = (
    'none',
    'max_pool_3x3',
    'avg_pool_3x3',
    'skip_connect',
    'sep_conv_3x3',
    'sep_conv_5x5',
    'dil_conv_3x3',
    'dil_conv_5x5',
)
# arXiv:2001.00326, section 2.
NASBENCH201 = ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3')
