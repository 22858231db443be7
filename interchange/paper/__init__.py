"""The tables and figures of Zheng et al., ICLR 2022, made anew, with a verdict on every claim."""
