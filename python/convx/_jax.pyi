"""The compiled module of `convx.jax`: present where convx was built with jaxlib's headers."""

handlers: dict[str, object]
ffi_api_version: tuple[int, int]
