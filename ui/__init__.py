"""The privacy officer's screen: a read-only client of the hospitals' ledgers and the coordinator's store.

Pages arrange; every figure, sentence and chart comes from a module that does not import streamlit.
"""
