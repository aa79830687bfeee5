"""Weights to and from the formats of other programs.

One file a format, with the same functions: ``obstacle`` (why an architecture has no place in it), ``config_of`` and
``exported`` write it, ``architecture_of`` and ``imported`` read it. Where a format is only read, it has only these.
"""
