"""Forms of convolution, pooling and sums that XLA compiles to fast code on the CPU."""
