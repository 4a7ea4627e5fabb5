"""A whole small clinic on one machine, for demonstrations and tests: an archive, a study in it, and the server."""
