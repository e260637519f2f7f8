"""Images from Dockerfiles: reading them, the graph of their steps, contexts, and the cache's keys."""
