"""The commands of build_data.py."""

from vidbridge.data.build.check import check
from vidbridge.data.build.materialise import materialise
from vidbridge.data.build.preview import preview

COMMANDS = {"check": check, "preview": preview, "build": materialise}
