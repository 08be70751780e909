# Dense to sparse: starts from a trained upernet_convnext_mini (load_from), with Swin's recipe.
_base_ = ['./upernet_dynswin_mini_ft.py', './_base_/backbones/convnext_mini.py']

load_from = 'work_dirs/upernet_convnext_mini/iter_450.pth'
model = dict(backbone={{_base_.convnext_mini}})
