"""The wire contract: payloads, signatures, signing keys and the signed POST.

`payloads.py` and `signing.py` know no Django.
"""
