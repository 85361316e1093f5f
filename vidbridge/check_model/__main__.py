"""python -m vidbridge.check_model"""

from vidbridge.check_model.command import check_model
from vidbridge.runtime import launch

if __name__ == "__main__":
    launch.main(check_model)
