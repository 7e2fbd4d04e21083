"""Template tags and filters: `docora` is loaded into every template, `docs` only into those of the documentation."""
