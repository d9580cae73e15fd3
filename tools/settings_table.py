"""README's table of settings, from the settings themselves: `python -m tools.settings_table`."""

from shared.settings import Settings


def main() -> None:
    print("| variable | default | what it is |\n|---|---|---|")
    for name, field in Settings.model_fields.items():
        print(f"| `PENSTOCK_{name.upper()}` | `{field.default}` | {field.description} |")


if __name__ == "__main__":
    main()
