"""The fast path of training: the mathematics of PEFT and transformers in fewer operations."""
