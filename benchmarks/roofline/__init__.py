"""What a solve takes at least on an accelerator: operations, flops and bytes against ceilings."""
