from dollyllama.model import bnb

bnb.import_it()
