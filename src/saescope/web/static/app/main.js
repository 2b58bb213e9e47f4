// The one entry of every page: listeners for all, and the elements that a page may hold.
import { startFeature } from "./feature.js";
import { SaeFeatures } from "./featurelist.js";
import { SaeHistogram } from "./histogram.js";
import { bind, startKeys } from "./keys.js";
import { SaeMap } from "./map.js";
import { SaeMatch } from "./compare.js";
import { SaeRemarks } from "./remarks.js";
import { SaeRuns } from "./runs.js";
import { SaeSteer } from "./steer.js";
import { startTooltips } from "./tooltip.js";
import { SaeTryText } from "./try.js";
import { SaeTry } from "./try_box.js";

startTooltips();
bind("/", "search", () => document.querySelector("[data-search]")?.focus());
startFeature();
startKeys();
customElements.define("sae-features", SaeFeatures);
customElements.define("sae-histogram", SaeHistogram);
customElements.define("sae-map", SaeMap);
customElements.define("sae-match", SaeMatch);
customElements.define("sae-remarks", SaeRemarks);
customElements.define("sae-runs", SaeRuns);
customElements.define("sae-steer", SaeSteer);
customElements.define("sae-try", SaeTry);
customElements.define("sae-try-text", SaeTryText);
