"""Writes docs/settings.md from the settings: `python -m tools.settings_table > docs/settings.md`."""

from shared.settings import PREFIX, Settings

# The first setting of each section, and the section's title.
SECTIONS = {
    "redis_url": "Every process",
    "queue_jobs_max": "The queue and its jobs",
    "header_bytes_max": "The API",
    "engine": "Workers and their engines",
}
HEAD = """# Settings

A process reads these environment variables once, at its start. A bad value stops the start and names its variable, and
a process warns of a `PENSTOCK_` variable that is no setting. Options of the commands (`penstock api --help`) win over them.
Compose takes some of them from `.env` ([.env.example](../.env.example)), and the chart takes them in lower case without
the prefix ([helm/values.yaml](../helm/values.yaml)).

This page is made by `python -m tools.settings_table > docs/settings.md`; a test compares them."""


def main() -> None:
    print(HEAD)
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            print(f"\n## {SECTIONS[name]}\n\n| variable | default | what it is |\n|---|---|---|")
        print(f"| `{PREFIX}{name.upper()}` | `{field.default}` | {field.description} |")


if __name__ == "__main__":
    main()
