"""The tables and figures of the ICLR 2022 paper, made anew."""
