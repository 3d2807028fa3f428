"""FLEURS: the sentences of FLoRes read aloud in 102 languages."""
