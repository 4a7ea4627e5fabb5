"""Published weights: what was released and how it becomes files that the overlays of this bundle read."""
