// Copying a feature as link, JSON or Markdown. Works from a file too, where the text lies in the page.
import { announce, h, island } from "./dom.js";

async function textOfFeature(button) {
  if (button.dataset.copy === "link") {
    const address = new URL(location.href);
    address.searchParams.delete("embed");
    return address.href;
  }
  if (!button.dataset.from) return island(button.dataset.copy);
  const answer = await fetch(button.dataset.from, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
  return answer.text();
}

async function putOnClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text); // no clipboard here (a file, no https), or not allowed
  }
}

function copySelected(text) {
  const place = h("textarea", { class: "unseen", readonly: true, "aria-hidden": "true" });
  place.value = text;
  document.body.append(place);
  const before = document.activeElement;
  place.select();
  try {
    return document.execCommand("copy");
  } finally {
    place.remove();
    before?.focus();
  }
}

/** Where nothing else is allowed the text is shown, ready to be copied by hand. */
function showToCopy(text) {
  const place = h("textarea", { readonly: true, rows: "12", "aria-label": "Text to copy" });
  place.value = text;
  const dialog = h("dialog", { "aria-label": "Copy" }, place, h("form", { method: "dialog" }, h("button", {}, "Close")));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  place.select();
}

async function copyFeature(button) {
  const words = button.dataset.words ?? (button.dataset.words = button.textContent);
  try {
    const text = await textOfFeature(button);
    if (!(await putOnClipboard(text))) {
      showToCopy(text);
      return;
    }
    button.textContent = "Copied";
    announce(`${words} copied`);
  } catch (error) {
    button.textContent = "Failed";
    announce(error.message);
  }
  setTimeout(() => (button.textContent = words), 1500);
}

/** Listen to the buttons with `data-copy`. */
export function startCopying() {
  for (const button of document.querySelectorAll("button[data-copy]")) button.addEventListener("click", () => copyFeature(button));
}
