// The one entry of every page: listeners for all, and the elements that a page may hold.
import { bind, startKeys } from "./keys.js";
import { startTooltips } from "./tooltip.js";

startTooltips();
bind("/", "search", () => document.querySelector("[data-search]")?.focus());
startKeys();
