"""The school around the library: cached artefacts, checks of exercises, diagnosis, the runner behind ``make``."""
