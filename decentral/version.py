"""The package's version and the versions of the wire protocol that it speaks."""

__version__ = "0.1.0"

#: Wire protocol versions, best first. A link uses the first that both ends speak.
PROTOCOL_VERSIONS = (1,)
