"""The commands of build_data.py."""
