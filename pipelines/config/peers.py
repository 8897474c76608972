"""Words that people bring from other tools (Ultralytics, timm, mmdetection, transformers), and the keys here."""

from __future__ import annotations

#: Our key -> their words, with ``_`` between the parts of a word.
WORDS = {
    "trainer.max_epochs": "epochs num_epochs num_train_epochs",
    "trainer.max_steps": "steps iters max_iters iterations",
    "trainer.max_time": "time",
    "trainer.devices": "device gpu gpus num_gpus gpu_ids",
    "trainer.precision": "amp half fp16 bf16 native_amp",
    "trainer.gradient_clip_val": "clip_grad clip_grad_norm grad_clip max_grad_norm",
    "trainer.accumulate_grad_batches": "accumulate grad_accum_steps accum_iter gradient_accumulation_steps",
    "trainer.ema_decay": "ema model_ema model_ema_decay",
    "trainer.callbacks": "patience early_stopping",
    "trainer.check_val_every_n_epoch": "val_interval eval_interval",
    "trainer.save_every_minutes": "save_period save_interval",
    "trainer.sync_batchnorm": "sync_bn syncbn",
    "trainer.log_every_n_steps": "log_interval logging_steps",
    "trainer.wandb.project": "wandb_project",
    "data.source": "data_dir data_path data_root dataset root train_dir img_dir",
    "data.batch_size": "batch bs train_batch_size per_device_train_batch_size samples_per_gpu",
    "data.eval_batch_size": "validation_batch_size val_batch_size per_device_eval_batch_size",
    "data.image_size": "imgsz img img_size input_size img_scale resolution",
    "data.num_workers": "workers nw dataloader_num_workers workers_per_gpu",
    "data.class_names": "nc names classes",
    "data.val_fraction": "val_split validation_split val_size",
    "data.augment.preset": "aa auto_augment augmentation",
    "data.augment.hflip": "fliplr flip",
    "data.augment.vflip": "flipud",
    "data.augment.scale_jitter": "scale multi_scale",
    "data.augment.close_mosaic_epochs": "close_mosaic",
    "model.backbone": "arch encoder encoder_name model_name",
    "model.pretrained": "weights initial_checkpoint load_from finetune encoder_weights",
    "model.architecture": "decoder",
    "model.score_threshold": "conf conf_thres score_thr confidence",
    "model.nms_iou": "iou iou_thres nms_thr",
    "model.max_detections": "max_det max_per_img",
    "model.drop_rate": "drop dropout",
    "model.drop_path_rate": "drop_path",
    "model.label_smoothing": "smoothing",
    "model.erasing": "reprob random_erase",
    "model.freeze_backbone": "freeze freeze_encoder",
    "model.compile": "torchcompile",
    "model.optim.name": "opt optimizer",
    "model.optim.lr": "lr0 learning_rate base_lr blr",
    "model.optim.min_lr_ratio": "lrf min_lr eta_min",
    "model.optim.weight_decay": "wd",
    "model.optim.schedule": "sched scheduler lr_scheduler cos_lr lr_scheduler_type",
    "model.optim.warmup_epochs": "warmup warmup_steps warmup_ratio",
    "name": "experiment exp_name run_name",
    "runs_dir": "project work_dir output_dir out_dir save_dir log_dir",
    "ckpt_path": "checkpoint ckpt resume_from",
    "seed_everything": "seed random_state",
    "box_formats": "save_txt",
}
#: Arguments whose flag has another name.
RENAMED = {"exported": "model"}
#: Keys of a config that one command reads, which are given to another.
OWNERS = {"members": "ensemble", "combine": "ensemble", "students": "noisy-student"}
PEERS = {word: key for key, words in WORDS.items() for word in words.split()}


def key_of(word: str) -> str | None:
    """Our key for a word of another tool, ``img-size`` or ``img_size``; None for a word that is not known."""
    return PEERS.get(word.lower().replace("-", "_"))
