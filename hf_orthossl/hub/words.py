"""What cards and boards call tasks, metrics and penalties."""

TASKS = {
    "knn": "kNN classification",
    "linear": "linear probe",
    "finetune": "fine-tuning",
    "transfer": "transfer",
    "detection": "object detection",
}
METRICS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "mean_per_class": "mean accuracy per class"}
REGULARIZERS = {
    "so": "soft orthogonality, SO",
    "sketched_so": "soft orthogonality, SO, estimated from random vectors",
    "srip": "spectral restricted isometry, SRIP",
    "dso": "double soft orthogonality, DSO",
    "mc": "mutual coherence, MC",
}
