import base64, io, time
from PIL import Image
async def test_x(client, base_url):
    for prompt in ["a red fox on a yellow background","a hedgehog on a blue background", "a green frog on a white background","a cat on a red background"]:
        r = await client.post("/v1/images/generations", json={"prompt":prompt,"seed":1})
        im=Image.open(io.BytesIO(base64.b64decode(r.json()["data"][0]["b64_json"])))
        print(prompt, [im.getpixel(p) for p in [(2,2),(125,2),(2,125),(125,125),(64,64)]])
        im.save("/tmp/x_%s.png"%prompt.split()[1])
    t=time.time(); r = await client.post("/v1/images/generations", json={"prompt":prompt,"seed":1,"size":"256x256","num_inference_steps":50,"guidance_scale":5,"n":2}); print(time.time()-t, r.status_code)
    t=time.time(); r = await client.post("/v1/images/generations", json={"prompt":prompt,"seed":1}); print(time.time()-t, r.status_code)
    assert 0
