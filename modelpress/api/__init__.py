"""The API of modelpress: types, validation and CRDs. Light: pydantic and PyYAML only."""
