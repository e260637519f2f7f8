"""Pure planning: values and a `Host` in, an ordered tuple of printable steps out."""
