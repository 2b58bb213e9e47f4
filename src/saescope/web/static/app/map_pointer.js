// What a pointer does to the map: one drags, two pinch, the wheel zooms, a click opens, and with the lasso one draws.

const CLICK_REACH = 5; // pixels that a pointer may move between down and up

/** Listen on an element. `tell` has pan, zoom, point, leave, click, lasso (while drawn) and choose (when it is closed). */
export class MapPointer {
  constructor(element, tell) {
    this.element = element;
    this.tell = tell;
    this.down = new Map();
    this.lassoed = null;
    this.isLasso = false;
    element.addEventListener("pointerdown", (event) => this.pressed(event));
    element.addEventListener("pointermove", (event) => this.moved(event));
    element.addEventListener("pointerup", (event) => this.lifted(event));
    element.addEventListener("pointercancel", (event) => this.cancelled(event));
    element.addEventListener("pointerleave", () => this.down.size || tell.leave());
    element.addEventListener("wheel", (event) => this.wheeled(event), { passive: false });
  }

  place(event) {
    const box = this.element.getBoundingClientRect();
    return [event.clientX - box.left - this.element.clientLeft, event.clientY - box.top - this.element.clientTop];
  }

  pressed(event) {
    if (event.button !== 0) return;
    this.element.setPointerCapture(event.pointerId);
    const at = this.place(event);
    this.down.set(event.pointerId, at);
    this.start = at;
    this.isClick = this.down.size === 1;
    this.lassoed = this.isClick && (this.isLasso || event.shiftKey) ? [at] : null;
    if (!this.isClick) this.tell.lasso(null);
  }

  moved(event) {
    const at = this.place(event);
    const before = this.down.get(event.pointerId);
    if (!before) {
      this.tell.point(at, event.pointerType);
      return;
    }
    if (Math.hypot(at[0] - this.start[0], at[1] - this.start[1]) > CLICK_REACH) this.isClick = false;
    const other = [...this.down].find(([identity]) => identity !== event.pointerId)?.[1];
    this.down.set(event.pointerId, at);
    if (this.lassoed) {
      this.lassoed.push(at);
      this.tell.lasso(this.lassoed);
    } else if (other) {
      const [wide, was] = [at, before].map((place) => Math.hypot(place[0] - other[0], place[1] - other[1]));
      this.tell.pan((at[0] - before[0]) / 2, (at[1] - before[1]) / 2);
      if (was > 0 && wide > 0) this.tell.zoom(wide / was, (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
    } else if (!this.isClick) {
      this.tell.pan(at[0] - before[0], at[1] - before[1]);
    }
  }

  lifted(event) {
    if (!this.down.delete(event.pointerId)) return;
    const drawn = this.lassoed;
    this.lassoed = null;
    if (this.isClick) {
      this.tell.lasso(null);
      this.tell.click(this.place(event), event);
    } else if (drawn) {
      this.tell.choose(drawn);
    }
    this.isClick = false;
  }

  cancelled(event) {
    this.down.delete(event.pointerId);
    this.lassoed = null;
    this.isClick = false;
    this.tell.lasso(null);
  }

  wheeled(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    const rate = event.ctrlKey ? 0.01 : 0.002; // a pinch on a touch pad comes as a wheel with ctrl, in small steps
    this.tell.zoom(Math.exp(-Math.max(-400, Math.min(400, event.deltaY * lines)) * rate), ...this.place(event));
  }
}
