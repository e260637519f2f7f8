"""Images: their store, their layers, and the registries that they come from."""
