// Keys: one table of what each does, from which the help is made. Keys mean nothing while somebody types.
import { h } from "./dom.js";

const bindings = new Map();
let prefix = "";

/** Let a key ("j", "/", "ArrowLeft") or two after each other ("g f") do something; `words` stand in the help. */
export function bind(keys, words, action) {
  for (const key of Array.isArray(keys) ? keys : [keys]) bindings.set(key, { words, action });
}

function isTyping(target) {
  return target instanceof Element && Boolean(target.closest("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]"));
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === "Escape" && isTyping(event.target)) {
    event.target.blur();
    return;
  }
  if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
  const found = bindings.get(prefix ? `${prefix} ${event.key}` : event.key);
  const isFirst = !prefix && [...bindings.keys()].some((key) => key.startsWith(`${event.key} `));
  prefix = isFirst && !found ? event.key : "";
  if (!found) return;
  event.preventDefault();
  found.action(event);
}

function help() {
  const lines = new Map();
  for (const [key, { words }] of bindings) lines.set(words, [...(lines.get(words) ?? []), key]);
  const list = h("dl", {});
  for (const [words, keys] of lines) {
    list.append(h("dt", {}, keys.flatMap((key, at) => [at ? " or " : "", h("kbd", {}, named(key))])), h("dd", {}, words));
  }
  const dialog = h("dialog", { "aria-labelledby": "keys-title" }, h("h2", { id: "keys-title" }, "Keys"), list);
  dialog.append(h("form", { method: "dialog" }, h("button", {}, "Close")));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

function named(key) {
  return { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" }[key] ?? key;
}

/** Listen. */
export function startKeys() {
  bind("?", "this help", help);
  document.addEventListener("keydown", pressed);
  for (const button of document.querySelectorAll("[data-help]")) button.addEventListener("click", help);
}
