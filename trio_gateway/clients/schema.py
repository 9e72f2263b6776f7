"""The version of schema `gateway` that this release works with.

Workers compare it at start-up; they need not load the migrations for that.
"""

SCHEMA_VERSION = "0006"
