"""Prints the JSON Schema of a models file: `python -m tools.models_schema > docs/models.schema.json`."""

import json

from shared.models_file.tables import json_schema


def main() -> None:
    print(json.dumps(json_schema(), indent=2))


if __name__ == "__main__":
    main()
