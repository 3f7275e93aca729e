"""The page of a service with two models: a choice of one, whose presets and limits the form then has."""

from __future__ import annotations

from playwright.async_api import expect

from serve.api.app import create_app
from serve.presets.hot import hot_presets

BASE = "z-image-base"
PRESETS = """
presets:
  - {name: quick, title: {en: Quick, zh: 快}, models: ["!z-image-base"], num_inference_steps: 2}
  - {name: careful, title: {en: Careful, zh: 细}, models: [z-image-base], num_inference_steps: 9}
"""


async def test_the_form_is_that_of_the_chosen_model(service, settings, tmp_path, serving, visit):
    file = tmp_path / "presets.yaml"
    file.write_text(PRESETS)
    models = settings.model_validate({"models": {BASE: {"default_size_px": 64, "max_side_px": 128}}}).models
    two = settings.model_copy(update={"presets": file, "models": models})
    presets = hot_presets(two)
    await presets.open()
    tokenizers = {BASE: service.prompts}
    app = create_app(service, service.assets, service.prompts, two, presets=presets, tokenizers=tokenizers)
    async with serving(app) as url, visit(url) as page:
        group = page.get_by_role("group", name="Preset")
        await expect(group.get_by_role("button", name="Quick")).to_be_visible()
        await expect(page.get_by_label("Width")).to_have_attribute("max", "256")
        await page.get_by_label("Model").select_option(BASE)
        await expect(group.get_by_role("button", name="Careful")).to_be_visible()
        await expect(group.get_by_role("button", name="Quick")).to_have_count(0)
        await expect(page.get_by_label("Width")).to_have_attribute("max", "128")
        await page.reload()
        await expect(page.get_by_label("Model")).to_have_value(BASE)
        await page.get_by_label("Prompt", exact=True).fill("a fox")
        async with page.expect_request("**/v1/jobs") as sent:
            await page.get_by_role("button", name="Draw").click()
        assert (await sent.value).post_data_json["model"] == BASE


async def test_one_model_is_no_choice(page):
    await expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    await expect(page.get_by_role("group", name="Preset")).to_be_visible()
    await expect(page.get_by_label("Model")).to_have_count(0)
