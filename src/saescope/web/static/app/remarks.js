// Editing what is said of a feature: each change goes to the server, and is then put where the server would have put it.
import { get, send } from "./api.js";
import { announce, h } from "./dom.js";

const REMARK_AUTHOR_KEY = "saescope author";

const REMARK_KINDS = {
  explanations: { one: "explanation", add: "Explain", label: "What does it mean?" },
  tags: { one: "tag", add: "Add a tag", label: "Tag" },
  notes: { one: "note", add: "Write a note", label: "Note" },
};

/** `<sae-remarks api="/api/d/NAME/f/3" shared="/api">` around lists that the server made. Without `api` they stay as they are. */
export class SaeRemarks extends HTMLElement {
  connectedCallback() {
    if (!this.hasAttribute("api") || this.ready) return;
    this.ready = true;
    for (const [kind, words] of Object.entries(REMARK_KINDS)) {
      const list = this.listOf(kind);
      for (const item of list.children) this.giveButtons(kind, item);
      const add = h("button", { type: "button", class: "adds", onclick: () => this.openForm(kind, null) }, words.add);
      list.after(add);
    }
  }

  /** Begin a note: the form opens, and has the focus. */
  writeNote() {
    this.openForm("notes", null);
  }

  listOf(kind) {
    return this.querySelector(`[data-kind="${kind}"]`);
  }

  giveButtons(kind, item) {
    const text = () => item.querySelector(".text").textContent;
    const short = text().slice(0, 40);
    const { one } = REMARK_KINDS[kind];
    if (kind === "notes") {
      item.append(
        " ",
        h("button", { type: "button", "aria-label": `Edit the note “${short}”`, onclick: () => this.openForm(kind, item) }, "Edit"),
      );
    }
    item.append(
      " ",
      h(
        "button",
        { type: "button", "aria-label": `Remove the ${one} “${short}”`, onclick: (event) => this.remove(kind, item, event.target) },
        kind === "tags" ? "×" : "Remove",
      ),
    );
  }

  /** A form for a new remark, or for the text of one that is there. */
  openForm(kind, item) {
    const section = this.listOf(kind).closest("section");
    this.querySelector("form")?.cancel();
    const { label, one } = REMARK_KINDS[kind];
    const identity = `remark-${kind}`;
    const field =
      kind === "tags"
        ? h("input", { id: identity, maxlength: "100", autocomplete: "off", required: true, list: "known-tags" })
        : h("textarea", { id: identity, maxlength: "10000", required: true });
    if (item) field.value = item.querySelector(".text").textContent;
    const author =
      kind === "tags" || item ? null : h("input", { "aria-label": "Your name", placeholder: "your name", maxlength: "200", autocomplete: "name" });
    if (author) author.value = rememberedAuthor();
    const problem = h("p", { class: "warn", role: "alert", hidden: true });
    const add = section.querySelector(".adds");
    const form = h(
      "form",
      { "aria-label": item ? `Edit the ${one}` : REMARK_KINDS[kind].add },
      h("label", { for: identity, class: "unseen" }, label),
      field,
      kind === "tags" && h("datalist", { id: "known-tags" }),
      h("div", { class: "row" }, author, h("button", { class: "main" }, "Save"), h("button", { type: "button", onclick: () => form.cancel() }, "Cancel")),
      problem,
    );
    form.cancel = () => {
      (form.closest("li.editing") ?? form).remove();
      if (item) item.hidden = false;
      add.hidden = false;
      add.focus();
    };
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
      if (event.key === "Escape") {
        event.preventDefault();
        form.cancel();
      }
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.save(kind, item, form, field.value, author?.value.trim() ?? "", problem);
    });
    if (item) {
      item.after(h("li", { class: "editing" }, form));
      item.hidden = true;
    } else {
      add.before(form);
    }
    add.hidden = true;
    field.focus();
    if (kind === "tags") this.offerTags(form.querySelector("datalist"));
  }

  /** The tags that other features have. */
  async offerTags(list) {
    try {
      const known = await get(this.getAttribute("api").replace(/\/f\/\d+$/, "/tags"));
      list.replaceChildren(...Object.keys(known).map((tag) => h("option", { value: tag })));
    } catch {
      // a tag can be written without
    }
  }

  async save(kind, item, form, text, author, problem) {
    const { one } = REMARK_KINDS[kind];
    const here = this.getAttribute("api");
    try {
      if (item) {
        await send("PUT", `${this.getAttribute("shared")}/notes/${item.dataset.id}`, { text });
        item.querySelector(".text").textContent = text;
      } else if (kind === "tags") {
        const tag = text.trim();
        await send("POST", `${here}/tags`, { tag });
        this.showTag(tag);
      } else {
        const made = await send("POST", `${here}/${kind}`, { text, author });
        rememberAuthor(author);
        this.show(kind, made.id, text, author);
      }
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
      return;
    }
    form.cancel();
    announce(item ? "The note was changed" : `The ${one} was added`);
  }

  show(kind, identity, text, author) {
    const by = kind === "notes" ? `${author} ${new Date().toISOString().slice(0, 10)}` : author || "human";
    const item = h("li", { "data-id": identity }, h("span", { class: "text" }, text), " ", h("span", { class: "by" }, by));
    this.giveButtons(kind, item);
    this.listOf(kind).append(item);
  }

  showTag(tag) {
    const list = this.listOf("tags");
    const items = [...list.children];
    if (items.some((item) => item.querySelector(".text").textContent === tag)) return;
    const item = h("li", { class: "chip" }, h("span", { class: "text" }, tag));
    this.giveButtons("tags", item);
    list.insertBefore(item, items.find((other) => other.querySelector(".text").textContent > tag) ?? null);
  }

  async remove(kind, item, button) {
    const { one } = REMARK_KINDS[kind];
    const shared = this.getAttribute("shared");
    button.disabled = true;
    try {
      if (kind === "tags") {
        const tag = item.querySelector(".text").textContent;
        await send("DELETE", `${this.getAttribute("api")}/tags?tag=${encodeURIComponent(tag)}`);
      } else {
        await send("DELETE", `${shared}/${kind}/${item.dataset.id}`);
      }
    } catch (error) {
      button.disabled = false;
      announce(error.message);
      return;
    }
    const near = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    (near?.querySelector("button") ?? this.listOf(kind).closest("section").querySelector(".adds")).focus();
    announce(`The ${one} was removed`);
  }
}

function rememberedAuthor() {
  try {
    return localStorage.getItem(REMARK_AUTHOR_KEY) ?? "";
  } catch {
    return ""; // storage is not allowed here
  }
}

function rememberAuthor(author) {
  try {
    localStorage.setItem(REMARK_AUTHOR_KEY, author);
  } catch {
    // asked again the next time
  }
}
