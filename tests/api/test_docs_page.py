import re


async def test_the_page_and_all_that_it_loads_come_from_here(client):
    page = (await client.get("/docs")).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) == 3
    for path in [*loaded, *re.findall(r'"?url"?: [\'"]([^\'"]+)', page)]:
        assert path.startswith("/")
        assert (await client.get(path)).status_code == 200
    assert "http://" not in page
    assert "https://" not in page


async def test_its_files_have_their_types_and_nothing_else_is_there(client, refused):
    script = await client.get("/docs/files/swagger-ui-bundle.js")
    assert script.headers["Content-Type"].startswith("text/javascript")
    assert "SwaggerUIBundle" in script.text
    refused(await client.get("/docs/files/../../errors.py"), 404, "not_found")
    refused(await client.get("/docs/files/%2e%2e/core.py"), 404, "not_found")
