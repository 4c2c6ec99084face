"""The fast path of training: the mathematics of PEFT in fewer operations."""
