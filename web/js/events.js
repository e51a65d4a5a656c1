// Tells the page that LoRA Loom's events are known: it warns in its console about any that nobody listens to.
import { api } from "../../scripts/api.js";

for (const name of ["started", "memory", "estimate", "progress", "sample", "sample_failed", "checkpoint", "checkpoint_failed", "step_skipped", "out_of_memory", "will_not_fit", "saved"]) {
    api.addEventListener(`lora_loom.${name}`, () => {});
}
