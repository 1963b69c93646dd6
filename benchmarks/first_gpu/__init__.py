"""The first minutes on a GPU: what no CPU can tell, checked one by one, and the phases of a step measured."""
