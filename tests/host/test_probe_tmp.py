def test_x(comfy_modules):
    import comfy.sd, comfy.model_management as m
    import nodes
    print(nodes.__file__, m.get_torch_device())
    import lora_loom.nodes
    from loom_host_server import Comfy
    import lora_loom.trainer.backbones.comfy_toy as t
    m,c,v=t.load(); print(m,c,v)
