from dollyllama.model.load import silence_notices

# Before any other import of this process brings bitsandbytes in, as that of PEFT does.
silence_notices()
