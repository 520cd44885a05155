"""Draws docs/report/ from a run of the digits: `python -m tools.report_pictures WORKDIR`.

Needs Chromium and tests/requirements.txt.
"""

import pathlib
import shutil
import sys

from playwright import sync_api

FOLDER = pathlib.Path(__file__).parent.parent / 'docs' / 'report'
# Of each picture: width and height of the window, colours, and the section that it begins with.
PICTURES = {'desktop': (1280, 980, 'light', None), 'phone': (390, 1000, 'dark', '#alpha')}


def main(workdir: str) -> None:
    page_file = pathlib.Path(workdir, 'report.html').resolve()
    with sync_api.sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
        browser = playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])
        for name, (width, height, scheme, section) in PICTURES.items():
            page = browser.new_page(
                viewport={'width': width, 'height': height}, color_scheme=scheme
            )
            page.goto(page_file.as_uri())
            if section:
                page.locator(section).evaluate('section => section.scrollIntoView()')
            page.screenshot(path=FOLDER / f'{name}.png')


if __name__ == '__main__':
    main(sys.argv[1])
