"""The API's bodies, as pydantic reads and describes them."""
