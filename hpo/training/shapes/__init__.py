"""Train members whose networks differ in widths or depth in one stack: padding, and the division into stacks."""
