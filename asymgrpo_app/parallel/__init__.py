"""Several processes that train one policy: what is sharded, what is exchanged, and what happens when one is lost."""
